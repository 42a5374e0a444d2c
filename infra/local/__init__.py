"""Everything for one machine: embedded broker and Milvus, and the supervisor of all our processes.

Imported by `infra/operate`, `infra/simulation`, `infra/cli` and tests. Begin with `stack.py`: it is `nextwatch up`.
"""
