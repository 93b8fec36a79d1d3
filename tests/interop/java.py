"""Runs a Java program with the JDBC driver of PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from tests.support.maven import find_jars

DRIVER = "org.postgresql:postgresql:42.7.7"


def jdbc_peer() -> list[str]:
    """The command of the program that writes a table; absent as ``find_jars``. Java compiles it as it starts."""
    jars = find_jars("jdbc-42.7.7", DRIVER)
    source = Path(__file__).parent / "jdbc_peer" / "Writer.java"
    return ["java", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8", "-cp", f"{jars}/*", str(source)]
