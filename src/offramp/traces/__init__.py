"""What every exit said about every unit, recorded once; thresholds, curves and comparisons are computed from it."""
