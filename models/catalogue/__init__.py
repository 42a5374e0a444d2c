"""Items, contexts and users as columns and codes, and the filters on them. Imported by everyone; imports nothing of
ours but `models.arrays`. Open catalogue.py first."""
