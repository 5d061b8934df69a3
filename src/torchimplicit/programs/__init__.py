"""How convex programs are solved: an interior point, the active set there, and the linear systems that both need."""
