"""How close accelerated generations stay to the original at equal cost: ours, and what others published."""
