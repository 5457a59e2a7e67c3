def count(m, tokens=None):
    class C: total=1; ratio=1.
    return C()
