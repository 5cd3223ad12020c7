//! All credentials: a source for each way of logging in that an operator has named, the same one for the same words.

use super::engine::{Engine, Fetch, Name, Reported, Value};
use super::managed::{Engines, Managed, Secret};
use super::pace::Pace;
use super::passfile::Passfile;
use super::policy::Renewal;
use super::{BoxFuture, Fixed, Proof, Report, Role, Source, Spec};
use super::{command, file, passfile};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::runtime::Handle;

/// All credentials.
pub struct Keyring {
    /// Where they are fetched: it lives for as long as clients are served.
    runtime: Handle,
    pace: Arc<Pace>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Sources by what they were made for. Those that are good for many roles are kept, others only while a pool has them.
    known: Vec<(Spec, Option<Role>, Weak<dyn Source>)>,
    kept: Vec<(Spec, Arc<dyn Source>)>,
    /// AWS credentials by their profile: one set signs the tokens of all roles and servers.
    #[cfg(feature = "aws")]
    keys: Vec<(Option<String>, Arc<Engine<super::aws::Keys>>)>,
    reported: Vec<Weak<dyn Reported>>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyring")
    }
}

impl Keyring {
    /// An empty one that fetches on this runtime.
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, pace: Arc::default(), held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source for a role.
    pub fn source(&self, spec: &Spec, role: &Role) -> Arc<dyn Source> {
        let for_role = match spec {
            Spec::None => return Arc::new(Fixed(Proof::Nothing)),
            Spec::Password(text) => return Arc::new(Fixed(Proof::Password(text.clone()))),
            Spec::Passfile(_) => Some(role.clone()),
            #[cfg(feature = "aws")]
            // Its database is none of a token's business.
            Spec::AwsRdsIam { .. } => Some(Role { user: role.user.clone(), database: String::new() }),
            _ => None,
        };
        let mut held = self.held();
        held.known.retain(|(.., source)| source.strong_count() > 0);
        let known = held.known.iter().find(|(known, role, _)| known == spec && *role == for_role);
        if let Some(source) = known.and_then(|(.., source)| source.upgrade()) {
            return source;
        }
        let source = self.make(&mut held, spec, role);
        if for_role.is_none() {
            held.kept.push((spec.clone(), Arc::clone(&source)));
        }
        held.known.push((spec.clone(), for_role, Arc::downgrade(&source)));
        source
    }

    /// Forgets what was made from other words than these.
    pub fn retain(&self, specs: &[&Spec]) {
        self.held().kept.retain(|(spec, _)| specs.contains(&spec));
    }

    /// How all credentials stand.
    pub fn reports(&self) -> Vec<Report> {
        let mut held = self.held();
        held.reported.retain(|reported| reported.strong_count() > 0);
        let mut reports: Vec<Report> = held.reported.iter().filter_map(Weak::upgrade).map(|r| r.report()).collect();
        drop(held);
        reports.sort_by(|a, b| (a.source, &a.name, &a.server).cmp(&(b.source, &b.name, &b.server)));
        reports
    }

    fn engine<V: Value>(
        &self,
        held: &mut Held,
        name: Name,
        renewal: Renewal,
        fetch: impl Fn(bool) -> BoxFuture<'static, Result<Fetch<V>, String>> + Send + Sync + 'static,
    ) -> Arc<Engine<V>> {
        let engine = Engine::start(&self.runtime, name, renewal, fetch);
        let weak: Weak<dyn Reported> = Arc::downgrade(&(Arc::clone(&engine) as Arc<dyn Reported>));
        held.reported.push(weak);
        engine
    }

    fn make(&self, held: &mut Held, spec: &Spec, role: &Role) -> Arc<dyn Source> {
        let name = |source, name: &str| Name { source, name: name.to_owned(), server: None };
        let renewal = Renewal::FETCHED;
        let one = |engine: Arc<Engine<Secret>>, advice: Option<&'static str>| -> Arc<dyn Source> {
            // Only the clouds have advice, and a limit.
            let pace = advice.map(|_| Arc::clone(&self.pace));
            Arc::new(Managed { engines: Engines::One(engine), basis: None, pace, advice })
        };
        match spec.clone() {
            Spec::None => Arc::new(Fixed(Proof::Nothing)),
            Spec::Password(text) => Arc::new(Fixed(Proof::Password(text))),
            Spec::File(path) => {
                let name = name("password_file", &path.display().to_string());
                one(self.engine(held, name, renewal, move |_| Box::pin(file::fetch(path.clone()))), None)
            }
            Spec::Command(spec) => {
                let name = name("password_command", spec.argv.first().map_or("", String::as_str));
                one(self.engine(held, name, renewal, move |_| Box::pin(command::fetch(spec.clone()))), None)
            }
            Spec::Passfile(path) => {
                let name = name("passfile", &path.display().to_string());
                let engine = self.engine(held, name, renewal, move |_| Box::pin(passfile::fetch(path.clone())));
                Arc::new(Passfile { engine, role: role.clone() })
            }
            #[cfg(feature = "aws")]
            Spec::AwsRdsIam { profile, endpoints } => self.rds(held, profile, endpoints, &role.user),
            #[cfg(feature = "gcp")]
            Spec::GcpIam { scope, account } => {
                let name = name("gcp_iam", &account);
                let fetch =
                    move |_| -> BoxFuture<'static, _> { Box::pin(super::gcp::fetch(scope.clone(), account.clone())) };
                one(self.engine(held, name, renewal, fetch), Some(super::gcp::ADVICE))
            }
            #[cfg(feature = "azure")]
            Spec::AzureEntra { resource, client_id } => {
                let name = name("azure_entra", client_id.as_deref().unwrap_or(""));
                let fetch = move |_| -> BoxFuture<'static, _> {
                    Box::pin(super::azure::fetch(resource.clone(), client_id.clone()))
                };
                one(self.engine(held, name, renewal, fetch), Some(super::azure::ADVICE))
            }
        }
    }

    /// A source with an engine for each server: each has tokens of its own, signed with the same keys.
    #[cfg(feature = "aws")]
    fn rds(
        &self,
        held: &mut Held,
        profile: Option<String>,
        endpoints: Vec<(crate::net::Address, super::Endpoint)>,
        user: &str,
    ) -> Arc<dyn Source> {
        use super::aws;
        let known = held.keys.iter().find(|(known, _)| *known == profile).map(|(_, engine)| Arc::clone(engine));
        let keys = known.unwrap_or_else(|| {
            let region = endpoints.first().map(|(_, endpoint)| endpoint.region.clone()).unwrap_or_default();
            let name = Name { source: "aws", name: profile.clone().unwrap_or_default(), server: None };
            let asked = profile.clone();
            let engine = self.engine(held, name, Renewal::FETCHED, move |_| {
                Box::pin(aws::fetch_held(asked.clone(), region.clone()))
            });
            held.keys.push((profile, Arc::clone(&engine)));
            engine
        });
        let user: Arc<str> = user.into();
        let engines = endpoints.into_iter().map(|(address, endpoint)| {
            let server = Some(format!("{}:{}", endpoint.host, endpoint.port));
            let name = Name { source: "aws_rds_iam", name: user.to_string(), server };
            let (keys, endpoint, user) = (Arc::clone(&keys), Arc::new(endpoint), Arc::clone(&user));
            let engine = self.engine(held, name, Renewal::SIGNED, move |refused| {
                Box::pin(aws::fetch(Arc::clone(&keys), Arc::clone(&endpoint), Arc::clone(&user), refused))
            });
            (address, engine)
        });
        let engines = engines.collect();
        let pace = Some(Arc::clone(&self.pace));
        let basis: Arc<dyn Reported> = keys;
        Arc::new(Managed { engines: Engines::PerNode(engines), basis: Some(basis), pace, advice: Some(aws::ADVICE) })
    }
}
