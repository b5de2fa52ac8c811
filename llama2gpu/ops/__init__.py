"""What each op promises, whoever computes it: cases, cost, tolerance, and shared tables."""
