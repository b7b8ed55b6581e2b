"""The command `report`: a run, or several compared, as one HTML page."""
