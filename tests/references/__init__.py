"""What other programs compute, written again in elementary steps from papers and documented parameters.

Plain and slow on purpose: nothing here is shared with our models. Weights carry the other program's own
names. Everything is computed in the precision of the weights.
"""
