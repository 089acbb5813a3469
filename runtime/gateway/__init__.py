"""A DICOM gateway in front of a PACS: objects come in, are screened, and are forwarded or quarantined.

A module imports only from modules above it in this list:

    settings, tls                     what is configured, as data · TLS contexts from it
    config, json_logging              gateway.toml to settings · structured logs without patients
    database                          the spool's SQLite file: schema, transactions
    audit_trail, trail_reader         hash-chained lines about every event · read as they come
    dicom_audit_messages, health      DICOM's own audit messages · whether lines reach the file and the collector
    object_files                      objects on disk: written, fsynced, hashed, removed
    outcome                           a verdict, its reason, and what is done with the object
    spool                             objects and their states; what is due
    delivery_queue, quarantine        what is due at which destination · who decided what
    dicom_header, rules               an object's attributes · which rule applies
    object_screener                   from object to outcome
    dicom_server                      pynetdicom's switches, and guards for its weaknesses
    c_store_scp, folder_watcher       objects in by C-STORE · from a folder
    forwarder                         objects out, to each destination
    c_store_scu, stow_client          by C-STORE · by STOW-RS
    http                              HTTP in, the status page
    syslog                            audit messages to a collector
    lock, preflight                   one service per spool · whether what the configuration names exists, opens and fits
    worker_process, workers           a worker as a process · what each one runs
    supervisor                        starts the workers and watches them
    example_config                    a first configuration
"""
