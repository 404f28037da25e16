//! The same against a real server of S3's protocol, whose conditional puts nothing rests on.

mod world;

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use store::{Layouts, Retention, Store, Which};
use testkit::needs;
use testkit::servers::Moto;
use world::{APP, App, Truth, Uploader, begin, check_all};

#[test]
fn a_bucket_keeps_what_two_primaries_upload() {
    needs!("debian:python3");
    wire::prefer_our_tls();
    let moto = Moto::start("backups");
    let bucket = AmazonS3Builder::new()
        .with_endpoint(format!("http://{}", moto.address()))
        .with_allow_http(true)
        .with_bucket_name("backups")
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .with_region("us-east-1");
    let store = Store::over(Arc::new(bucket.build().unwrap()), "prod", "s3://backups/prod".to_owned());
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut truth = Truth::new();
        for term in [1, 2] {
            let (mut app, mut layouts) = (App::new(term, term), Layouts::new());
            let mut run = begin(store.clone(), term).await.unwrap();
            for _ in 0..5 {
                let mut uploader = Uploader { app: &mut app, truth: &mut truth, dir: dir.path() };
                uploader.upload(&mut run, &mut layouts, 2).await.unwrap();
            }
            run.fold().await.unwrap();
            run.collect(Retention { last: 3, hourly: 0, daily: 0 }).await.unwrap();
            assert_eq!(store.pick(APP, Which::Latest).await.unwrap().id(), app.id);
        }
        let count = check_all(&store, &truth, "in S3").await;
        assert!(count >= 3, "{count}");
    });
}
