"""What a log holds for the streams: its users' histories, and what was watched last, for the trending list. Stands on
`history` and `trending`, whose rules it uses; imported by `infra/operate`. Open histories.py first."""
