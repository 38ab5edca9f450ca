//! Key services: real ones where they can be had, invented ones for what those do not do.

mod aws_kms;
mod http;
mod kms;
mod moto;
mod vault;
mod vault_stub;
mod world;
