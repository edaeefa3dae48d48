"""Whole-system tests: real programs, real sockets, real files, several processes at once.

    make system                                                      builds the programs and runs all of them
    DRAGONFLY_BIN=target/debug python3 -m unittest discover -s tests/system -t tests -v [-k NAME]

KEEP_FAILED=1 keeps the folder of a test that failed, with every log.
"""
