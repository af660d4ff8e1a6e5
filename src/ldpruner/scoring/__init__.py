"""How much each operator matters."""
