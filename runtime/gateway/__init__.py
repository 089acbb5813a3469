"""The gateway beside a PACS: objects in, verdicts out, nothing lost, nothing leaked.

A room imports only from the rooms above it in this list:

    settings, privacy            what is configured, as data · pseudonyms in place of names
    config, logs                 gateway.toml to settings · structured logs without patients
    database                     the spool's SQLite file: schema, transactions
    audit_trail                  hash-chained lines about everything that happened
    files                        objects on disk: written, fsynced, hashed, removed
    spool                        objects and their states; what is due
    header, quarantine, rules    what an object says of itself · who looked at what · what happens to what
    associations                 pynetdicom's switches and holes, in one place
    receive, watch, forward      C-STORE in · a folder in · C-STORE out
    screen                       an object to an outcome
    store_web                    STOW-RS out
    http/, web                   HTTP in, the status page · the part that runs it
    parts, service               the processes, and their supervisor
    check                        does what the configuration names exist, open, and fit
"""
