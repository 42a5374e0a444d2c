"""The topics for whoever is no part of us: JSON Schemas, an AsyncAPI document and a page, all made from messages.py and
topics.py. Imported by nobody; open asyncapi.py first."""
