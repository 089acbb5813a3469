"""The gateway beside a PACS: objects in, verdicts out, nothing lost, nothing leaked.

A room imports only from the rooms above it in this list:

    settings, privacy            what is configured, as data · pseudonyms in place of names
    config, logs                 gateway.toml to settings · structured logs without patients
    database                     the spool's SQLite file: schema, transactions
    audit_trail, trail_reader    hash-chained lines about everything that happened · followed as they come
    audit_messages, health       DICOM's own audit messages · whether lines get to the file and to the collector
    files                        objects on disk: written, fsynced, hashed, removed
    outcome                      a verdict, why, and what is done with the object
    spool                        objects and their states; what is due
    deliveries, quarantine       what is due where · who decided what
    header, rules, screen        what an object says of itself · what happens to what · an object to an outcome
    associations                 pynetdicom's switches and holes, in one place
    receive, watch               C-STORE in · a folder in
    forward, store_scu           what is due, out · by C-STORE
    store_web                    STOW-RS out
    http                         HTTP in, the status page
    syslog                       audit messages to a collector
    locking, check               one service a spool · does what the configuration names exist, open, and fit
    parts, web, service          the processes · the one for HTTP · their supervisor
    init                         a first configuration
"""
