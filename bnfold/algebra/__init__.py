"""The mathematics: affines, linear operators, sums and chains of these, rounding. Knows numpy alone."""
