"""Time against the error that was reached, ours and the peers', on eight problems."""
