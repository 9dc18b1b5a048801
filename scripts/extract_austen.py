#!/usr/bin/env python3
"""Writes the six novels of R's janeaustenr data as plain text: extract_austen.py Rdata.rdb FOLDER

An R lazy-load database is a run of records: 4 bytes (big-endian, the length when unpacked) and a zlib
stream of R's serialisation (XDR form, version 3; "R Internals", section 1.8). Each record here is one
character vector, the lines of one novel, whose first line is its title.
"""
import os
import struct
import sys
import zlib

VECTOR, STRING, MISSING = 16, 9, 0xFFFFFFFF


def records(data):
    while data:
        (length,) = struct.unpack_from(">I", data)
        stream = zlib.decompressobj()
        record = stream.decompress(data[4:], length + 1)
        if not stream.eof or len(record) != length:
            raise ValueError(f"a record has {len(record)} bytes, expected {length}")
        yield record
        data = stream.unused_data


def lines(record):
    at = 0

    def take(size):
        nonlocal at
        at += size
        return record[at - size:at]

    def number():
        return struct.unpack(">I", take(4))[0]

    if take(2) != b"X\n" or number() != 3:
        raise ValueError("a record is not R serialisation in XDR form, version 3")
    take(8)  # versions of the writer and of the oldest reader
    take(number())  # native encoding, UTF-8
    if number() & 0xFF != VECTOR:
        raise ValueError("a record is not a character vector")
    for _ in range(number()):
        if number() & 0xFF != STRING:
            raise ValueError("an element is not a string")
        length = number()
        yield "" if length == MISSING else take(length).decode("utf-8")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.splitlines()[0])
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    for record in records(data):
        text = list(lines(record))
        name = text[0].strip().lower().replace(" ", "_") + ".txt"
        with open(os.path.join(sys.argv[2], name), "w", encoding="utf-8", newline="") as file:
            file.write("\n".join(text))


if __name__ == "__main__":
    main()
