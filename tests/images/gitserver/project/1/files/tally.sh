#!/bin/sh
# Counts the words of standard input, the most frequent first.
tr -cs '[:alpha:]' '\n' | grep -v '^$' | sort | uniq -c | sort -rn
