"""Dead letters as a person works through them: listed, sent again, dropped. For the commands; open box.py first."""
