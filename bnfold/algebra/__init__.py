"""The mathematics: affines, linear operators, sums and chains of these, rounding. It needs numpy alone."""
