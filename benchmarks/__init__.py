"""How fast wganlab is, beside the loops that its users would write: ``make bench``."""
