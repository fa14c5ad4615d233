#!/usr/bin/env bash
# Every route of a running server, with curl alone.
#
#   diptych serve
#   examples/curl.sh                         # or: examples/curl.sh http://127.0.0.1:8123
set -euo pipefail

url=${1:-http://127.0.0.1:8000}
model=${2:-smollm2-135m-instruct}

get() { curl --silent --show-error --fail-with-body "$url$1" && echo; }
post() { curl --silent --show-error --fail-with-body --no-buffer "$url$1" -H 'Content-Type: application/json' -d "$2" && echo; }

echo '# Is it there, and can it serve?'
get /health
get /ready
get /v1/models

echo '# A chat'
post /v1/chat/completions '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "Name three primary colours."}],
  "max_tokens": 40, "temperature": 0
}'

echo '# The same, streamed as server-sent events'
post /v1/chat/completions '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "Name three primary colours."}],
  "max_tokens": 12, "temperature": 0, "stream": true
}'

echo '# A plain continuation'
post /v1/completions '{"model": "'"$model"'", "prompt": "The two panels of a diptych are", "max_tokens": 12, "seed": 7}'

echo '# What the workers do, and where the last requests spent their time'
get /diptych/status
get /diptych/requests
