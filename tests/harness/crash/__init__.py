"""The whole system is killed, part by part and step by step, and afterwards is what its topics imply."""
