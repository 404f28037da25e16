//! The same against real servers of S3's protocol and of Azure's; also one whose conditional puts race, since nothing
//! rests on them.

mod world;

use std::net::SocketAddr;
use std::sync::Arc;

use object_store::DynObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use store::{Basis, Retention, Store, Which};
use testkit::needs;
use testkit::servers::{Azurite, Moto, S3sFs};
use world::{APP, App, Truth, Uploader, begin, check_all};

fn bucket(at: SocketAddr) -> Arc<DynObjectStore> {
    wire::prefer_our_tls();
    let bucket = AmazonS3Builder::new()
        .with_endpoint(format!("http://{at}"))
        .with_allow_http(true)
        .with_bucket_name("backups")
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .with_region("us-east-1");
    Arc::new(bucket.build().unwrap())
}

fn keeps_what_two_primaries_upload(objects: Arc<DynObjectStore>, name: &str) {
    let store = Store::over(objects, "prod", name.to_owned());
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut truth = Truth::new();
        for term in [1, 2] {
            let (mut app, mut basis) = (App::new(term, term), Basis::default());
            let mut run = begin(store.clone(), term).await.unwrap();
            for _ in 0..5 {
                let mut uploader = Uploader { app: &mut app, truth: &mut truth, dir: dir.path() };
                uploader.upload(&mut run, &mut basis, 2).await.unwrap();
            }
            run.fold().await.unwrap();
            run.collect(Retention { last: 3, hourly: 0, daily: 0 }).await.unwrap();
            assert_eq!(store.pick(APP, Which::Latest).await.unwrap().id(), app.id);
        }
        assert_eq!(store.apps().await.unwrap(), [APP]);
        let count = check_all(&store, &truth, name).await;
        assert!(count >= 3, "{count}");
    });
}

#[test]
fn a_bucket_keeps_what_two_primaries_upload() {
    needs!("debian:python3");
    let moto = Moto::start("backups");
    keeps_what_two_primaries_upload(bucket(moto.address()), "s3://backups/prod");
}

#[test]
fn a_container_of_azure_keeps_what_two_primaries_upload() {
    needs!("debian:nodejs", "debian:npm");
    wire::prefer_our_tls();
    let azurite = Azurite::start("backups");
    let container = MicrosoftAzureBuilder::new()
        .with_endpoint(azurite.endpoint())
        .with_allow_http(true)
        .with_account(Azurite::ACCOUNT)
        .with_access_key(Azurite::KEY)
        .with_container_name("backups");
    keeps_what_two_primaries_upload(Arc::new(container.build().unwrap()), "az://backups/prod");
}

#[test]
fn a_bucket_whose_conditional_puts_race_keeps_them_as_well() {
    let server = S3sFs::start("backups");
    keeps_what_two_primaries_upload(bucket(server.address()), "s3://backups/prod");
}
