"""What crosses a process border, and nothing else: words, addresses, and the structs of every message. PURE.

A struct decodes, encodes and describes itself (JSON Schema) in one place. Who sends fills the struct; who receives reads
its attributes. `read.py` reads what older and newer processes, and the ancestors' clients, say. A member that nobody
produces or nobody consumes stands in `IGNORED` of tests/test_wire.py with its reason.
"""
