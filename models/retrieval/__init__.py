"""The candidate generator (paper section 3): net, losses, training, the model as served, and learning live. Stands on
`evaluation`. Open candidates.py for what is served, candidate_learning.py for how it is learnt."""
