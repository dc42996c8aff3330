#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Links a program and writes down what from: the hash of each object that the link took.

    record_objects.py MAP OUT COMMAND...    COMMAND links and leaves MAP; check_objects reads OUT

Of the members of archives that are named in the link map, as their bytes are in the archive at this
moment: ARCHIVE MEMBER SHA-256, a line each.
"""
import hashlib
import os
import re
import subprocess
import sys

NAME = re.compile(r"LOAD (\S+)|^ ?\.text\S*\s+0x\S+\s+0x\S+ (\S+)|\s+0x\S+\s+0x\S+ (\S+)")


def loaded(path):
    """(archive or None, member) of everything that a link map names."""
    found = set()
    with open(path, encoding="utf-8") as file:
        for line in file:
            match = NAME.match(line)
            name = next((group for group in match.groups() if group), None) if match else None
            if name is None:
                continue
            member = re.match(r"(.*\.a)\(([^)]+)\)$", name)
            if member:
                found.add((member[1], member[2]))
            elif name.endswith(".o"):
                found.add((None, name))
    return found


def members(path):
    """{name: hash} of an archive as GNU ar makes it; of two of one name, a hash of both."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:8] != b"!<arch>\n":
        raise ValueError(f"{path} is no archive")
    at, names, hashes = 8, b"", {}
    while at + 60 <= len(data):
        name = data[at : at + 16].rstrip()
        size = int(data[at + 48 : at + 58])
        body = data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
        if name == b"//":
            names = body
        if name in (b"/", b"//", b"/SYM64/"):
            continue
        if name.startswith(b"/"):
            begin = int(name[1:])
            name = names[begin : names.index(b"/\n", begin)]
        else:
            name = name.rstrip(b"/")
        name = name.decode()
        before = hashes.get(name, "").encode()
        hashes[name] = hashlib.sha256(before + body).hexdigest()
    return hashes


def record(map_path, out_path):
    archives, lines = {}, []
    for archive, member in sorted(loaded(map_path), key=str):
        if archive is None or not os.path.exists(archive):
            continue
        if archive not in archives:
            archives[archive] = members(archive)
        lines.append(f"{os.path.normpath(archive)} {member} {archives[archive][member]}\n")
    with open(out_path, "w", encoding="utf-8") as file:
        file.writelines(lines)


if __name__ == "__main__":
    status = subprocess.run(sys.argv[3:], check=False).returncode
    if status == 0:
        record(sys.argv[1], sys.argv[2])
    sys.exit(status)
