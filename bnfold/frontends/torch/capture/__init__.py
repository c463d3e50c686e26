"""How a module becomes a graph."""
