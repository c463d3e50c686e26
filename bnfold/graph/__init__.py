"""The neutral vocabulary: what an operator is, how a graph is seen and edited, what became of a BatchNorm."""
