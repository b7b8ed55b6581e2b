"""A trained network as one file for other programs, and the proof that the file gives what the network gives."""
