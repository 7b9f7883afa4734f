"""`ingot doctor`: is this machine fit to run Ingot, and what state is a run in."""
