"""The neutral vocabulary: operators, the view of a graph with its edits, the outcome of each BatchNorm."""
