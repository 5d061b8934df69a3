"""The main job: train a deep equilibrium classifier on real data, then measure what is claimed of implicit layers."""
