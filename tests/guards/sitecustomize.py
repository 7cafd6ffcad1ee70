"""For every Python process of the tests, by PYTHONPATH: no network, and no pickle is read."""

import pickle
import socket
import sys

_INTERNET = (socket.AF_INET, socket.AF_INET6)


def _connect(plain):
    def connect(self, *arguments):
        if self.family in _INTERNET:
            raise AssertionError(f"tests may use no network: connect{arguments}")
        return plain(self, *arguments)

    return connect


def _no_lookup(*arguments, **_):
    raise AssertionError(f"tests may use no network: getaddrinfo{arguments}")


def _no_pickle(plain):
    def load(*arguments, **settings):
        if sys._getframe(1).f_globals["__name__"].startswith("numba."):  # what it has compiled
            return plain(*arguments, **settings)
        raise AssertionError("a pickle is a program: pickle.load is forbidden")

    load.guarded = True
    return load


if not hasattr(pickle.load, "guarded"):  # conftest.py runs this in processes that have it, too
    socket.socket.connect = _connect(socket.socket.connect)
    socket.socket.connect_ex = _connect(socket.socket.connect_ex)
    socket.getaddrinfo = _no_lookup
    pickle.load = _no_pickle(pickle.load)
