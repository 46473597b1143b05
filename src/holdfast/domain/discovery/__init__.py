"""Discovery: where a service is, as decisions without a network.

What belongs here: what an answer is good for and for how long. What does not: asking anybody.
"""
