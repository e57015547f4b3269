#!/bin/sh
# Registers the namespace and the search attributes of perdure/wire.py. Safe to run again.
set -eu

: "${TEMPORAL_ADDRESS:?}" "${TEMPORAL_NAMESPACE:?}" "${RETENTION:?}"

# The port opens before the services behind it serve. A failure restarts the container, six times.
attempt=0
until temporal operator cluster health; do
    attempt=$((attempt + 1))
    [ "$attempt" -lt 30 ] || exit 1
    sleep 1
done

temporal operator namespace describe --namespace "$TEMPORAL_NAMESPACE" >/dev/null 2>&1 ||
    temporal operator namespace create --namespace "$TEMPORAL_NAMESPACE" --retention "$RETENTION"

# One command an attribute: with several names the last type counts for all of them.
register() {
    temporal operator search-attribute create --namespace "$TEMPORAL_NAMESPACE" --name "$1" --type "$2"
}

register AgentName Keyword
register AgentStatus Keyword
register AgentStopReason Keyword
register AgentUser Keyword
register AgentSteps Int
register AgentCostUsd Double
register AgentParkedFor Keyword
register AgentParkedAt Datetime
