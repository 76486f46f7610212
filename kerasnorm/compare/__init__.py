"""How far two computations are apart."""
