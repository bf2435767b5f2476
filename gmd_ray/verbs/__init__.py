"""The verbs of the command line: each module registers its own, and runs them.

Heavy imports stand inside the functions, after the checks that a user's mistake can fail.
"""
