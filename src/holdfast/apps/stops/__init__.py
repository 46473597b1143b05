"""`holdfast stops`: what services remember of their last stops, and what they make of it.

    show   print it, or have it forgotten

What belongs here: looking. What does not: the memory itself (`runtime.memory`), and what follows
from it (`domain.lifecycle`).
"""
