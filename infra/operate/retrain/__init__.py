"""`nextwatch retrain`: release after release from the topics, each within its time and through the gate.

Imported by `infra/cli`. Open rounds.py first: what a round is and when the next one begins; memory.py is
what a killed process leaves to the next."""
