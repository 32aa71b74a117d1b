"""`pytest -p tests.compiled tests/router`: the same tests over the compiled data plane, which is built first if need be."""

from router import compiled

compiled.build()
if not compiled.activate():
    raise RuntimeError("the data plane was built, but not for these sources: were they changed meanwhile?")
