"""wganlab trains GANs that differ in exactly one declared thing, and says whether the difference is real."""

__version__ = "0.1.0"
