//! Where does a service keep what it knows?
//!
//! A SQLite file by default, PostgreSQL where there is one; the same statements run on both (numbered parameters, no
//! dialect). Migrations run at the start, forwards only, and two starters cannot run them at once: PostgreSQL by an
//! advisory lock, SQLite by a lock on a file beside the database, which is held as long as the service lives, because a
//! SQLite database belongs to one process.
//! PostgreSQL's URL says how the connection is secured (`sslmode`, `sslrootcert`, `sslcert`, `sslkey`). Its files are read for
//! each new connection, and no connection lives longer than ten minutes: so new certificates need no restart.
//!
//! Not here: what the tables mean (`consumer`, and each service).

use std::borrow::Cow;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Any, AnyPool, SqlStr, Transaction};

/// Connections of one service: one writes, the others read.
const CONNECTIONS_MAX: u32 = 6;
/// A connection is made anew after so long.
const CONNECTION_LIVES: Duration = Duration::from_secs(600);
/// How long a connection is waited for.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{0} is in use by another process")]
    InUse(String),
    /// The file's directory or lock cannot be made.
    #[error("{file}: {source}")]
    File {
        /// Which.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The database refused.
    #[error("the database cannot be opened: {0}{remedy}", remedy = remedy(.0))]
    Database(#[from] sqlx::Error),
    /// A migration failed, or the database was made by a newer program.
    #[error("the database's tables cannot be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

/// What to look at where the connection could not be secured.
fn remedy(why: &sqlx::Error) -> &'static str {
    let words = why.to_string();
    let is_about = |word| words.contains(word);
    if ["certificate", "alert", "TLS", "SSL", "encryption"]
        .into_iter()
        .any(is_about)
    {
        "; look at sslmode, sslrootcert, sslcert and sslkey of its URL, and at the server's own certificate"
    } else {
        ""
    }
}

/// A service's database, with its tables up to date.
#[derive(Clone)]
pub struct Database {
    pool: AnyPool,
    is_sqlite: bool,
    /// Held while any copy lives.
    _lock: Option<Arc<File>>,
}

/// One step of a service's tables: number, name, statements. Steps are never changed, only added.
pub type Step = (i64, &'static str, &'static str);

const LIBRARY: Step = (1, "library", include_str!("../migrations/library.sql"));

static DRIVERS: Once = Once::new();

impl Database {
    /// Opens `url`: `postgres://…`, or a file's path for SQLite, and brings its tables up to date.
    pub async fn open(url: &str, steps: &[Step]) -> Result<Database, OpenError> {
        let lock = is_file(url).then(|| lock_beside(url)).transpose()?;
        let database = Self::connect(url, "rwc", lock).await?;
        database.migrate(steps).await?;
        Ok(database)
    }

    /// Opens what exists, for reading beside whoever owns it. Changes nothing, makes nothing.
    pub async fn open_for_reading(url: &str) -> Result<Database, OpenError> {
        Self::connect(url, "rw", None).await
    }

    async fn connect(url: &str, mode: &str, lock: Option<File>) -> Result<Database, OpenError> {
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let is_sqlite = is_file(url);
        let address = if is_sqlite {
            Cow::Owned(format!("sqlite://{url}?mode={mode}"))
        } else {
            Cow::Borrowed(url)
        };
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .max_lifetime(CONNECTION_LIVES)
            .acquire_timeout(ACQUIRE_WITHIN)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if is_sqlite {
                        // FULL: a commit that others were told of survives a loss of power, too.
                        sqlx::raw_sql(
                            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=10000;",
                        )
                        .execute(&mut *connection)
                        .await?;
                    }
                    Ok(())
                })
            })
            .connect(&address)
            .await?;
        Ok(Database {
            pool,
            is_sqlite,
            _lock: lock.map(Arc::new),
        })
    }

    async fn migrate(&self, steps: &[Step]) -> Result<(), OpenError> {
        let migrations = std::iter::once(&LIBRARY).chain(steps);
        let migrations = migrations.map(|(version, name, sql)| {
            Migration::new(
                *version,
                Cow::Borrowed(*name),
                MigrationType::Simple,
                SqlStr::from_static(sql),
                false,
            )
        });
        let migrator = Migrator {
            migrations: migrations.collect(),
            ..Migrator::DEFAULT
        };
        migrator.run(&self.pool).await?;
        Ok(())
    }

    /// For reading.
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Begins a transaction that will write: SQLite's single writer is waited for here and not in the middle of it.
    pub async fn begin(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        if self.is_sqlite {
            self.pool.begin_with("BEGIN IMMEDIATE").await
        } else {
            self.pool.begin().await
        }
    }

    /// Closes its connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn is_file(url: &str) -> bool {
    !(url.starts_with("postgres://") || url.starts_with("postgresql://"))
}

fn lock_beside(database: &str) -> Result<File, OpenError> {
    let path = PathBuf::from(format!("{database}.lock"));
    let failed = |source| OpenError::File {
        file: path.display().to_string(),
        source,
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse(database.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}
