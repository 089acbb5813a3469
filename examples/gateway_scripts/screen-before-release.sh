#!/usr/bin/env bash
# Screens a folder that is about to leave the house, and lets it go only if nothing in it gives a patient away.
#
#   screen-before-release.sh FOLDER INDEX REPORT
#
# FOLDER is what is to be released, INDEX what it is screened against ('lcmem-onnx index build' made it), REPORT a file that must not
# exist yet: it gets a line of JSON for each picture, whatever comes of it. Exit codes are those of 'lcmem-onnx scan':
# 0 nothing found, 1 at least one match, 2 an error, and anything that was not judged is an error.
set -euo pipefail

if [ "$#" -ne 3 ]; then
    echo "usage: screen-before-release.sh FOLDER INDEX REPORT" >&2
    exit 2
fi
folder=$1 index=$2 report=$3
if [ -e "$report" ]; then
    echo "screen-before-release: $report exists already" >&2
    exit 2
fi

# Under another name until it is whole, so that nobody takes half a report for one without findings.
umask 077
draft=$(mktemp "$report.XXXXXX") || exit 2
trap 'rm -f "$draft"' EXIT

code=0
lcmem-onnx scan "$folder" --index "$index" --search exact --json --quiet > "$draft" || code=$?
case $code in
    0 | 1 | 2) ;;
    *)
        echo "screen-before-release: the scan ended with $code, and is not complete" >&2
        exit 2
        ;;
esac

count() { grep -c "\"verdict\": \"$1\"" "$draft" || true; }
clear=$(count clear) matches=$(count match) errors=$(count error)
if [ "$code" -eq 0 ] && [ "$clear" -eq 0 ]; then
    echo "screen-before-release: nothing was screened, which is not the same as nothing found" >&2
    code=2
fi
if [ "$code" -eq 0 ] && grep -q '"complete": false' "$draft"; then
    echo "screen-before-release: not all of the index was searched, so a match may be missing" >&2
    code=2
fi
if [ "$code" -eq 2 ] && [ "$((clear + matches + errors))" -eq 0 ]; then
    echo "screen-before-release: no verdicts: no report" >&2
    exit 2
fi
ln -T "$draft" "$report" || exit 2
sync "$report"
echo "$clear clear, $matches match, $errors error: $report" >&2
exit "$code"
