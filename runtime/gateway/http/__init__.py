"""The gateway over HTTP: STOW-RS, POST /v1/screen, health, metrics, and a page for the person on duty.

callers                  who calls, and what they may
bodies                   a request's body, bounded in size and time
stow, screening          objects in · one object asked about
metrics                  counts for Prometheus
rendering, images      images for the page, drawn in a child process
pages                    the status page, the quarantine's pages, logging in
app                      the routes, put together
server                   the socket, TLS and uvicorn
"""
