"""The natural suite: items made from a user's own copies of the paper's six sources and a file of labels.

Nothing of those data sets is part of this project; each comes under its own licence from its own makers.
"""
