#!/bin/sh
# Counts the words of standard input, the most frequent first. Case makes no difference.
tr '[:upper:]' '[:lower:]' | tr -cs '[:alpha:]' '\n' | grep -v '^$' | sort | uniq -c | sort -rn
