//! VMs, disks, credentials, repositories.

use super::*;

suite!(
    a_vm_is_registered_once,
    an_update_keeps_what_it_does_not_know,
    disks_come_by_device_key,
    a_renamed_vm_stays_itself,
    names_are_exact_and_may_be_ambiguous,
    clients_name_vms_by_path,
    bad_vms_are_refused,
    credentials_keep_their_secret,
    repositories_are_made_once,
);

async fn a_vm_is_registered_once(catalog: Catalog) {
    let (made, created) = catalog
        .register_vm(&new_vm("web", &[2000]), at(0))
        .await
        .expect("a VM");
    assert!(created);
    assert_eq!((made.created_at, made.updated_at), (at(0), at(0)));
    let (again, created) = catalog
        .register_vm(&new_vm("web", &[2000]), at(5))
        .await
        .expect("a VM");
    assert!(!created);
    assert_eq!(
        again,
        Vm {
            updated_at: at(5),
            ..made.clone()
        }
    );
    let elsewhere = NewVm {
        vcenter_host: "vc2".to_owned(),
        ..new_vm("web", &[2000])
    };
    let (other, created) = catalog.register_vm(&elsewhere, at(0)).await.expect("a VM");
    assert!(created);
    assert_ne!(other.context_id, made.context_id);
    assert_eq!(catalog.vms().await.expect("VMs").len(), 2);
}

async fn an_update_keeps_what_it_does_not_know(catalog: Catalog) {
    let full = NewVm {
        vmware_vm_id: "vm-7".to_owned(),
        ..new_vm("web", &[2000])
    };
    catalog.register_vm(&full, at(0)).await.expect("a VM");
    let bare = NewVm {
        vm_path: String::new(),
        datacenter: String::new(),
        ..new_vm("web", &[2000])
    };
    let (vm, _) = catalog.register_vm(&bare, at(1)).await.expect("a VM");
    assert_eq!(
        (
            vm.vm_path.as_str(),
            vm.datacenter.as_str(),
            vm.vmware_vm_id.as_str()
        ),
        ("/DC/vm/web", "DC", "vm-7")
    );
}

async fn disks_come_by_device_key(catalog: Catalog) {
    let mut new = new_vm("web", &[31000, 2001, 16000, 2000]);
    let (vm, _) = catalog.register_vm(&new, at(0)).await.expect("a VM");
    let disks = catalog.vm_disks(&vm.context_id).await.expect("disks");
    let keys: Vec<u32> = disks.iter().map(|disk| disk.device_key.get()).collect();
    assert_eq!(keys, [2000, 2001, 16000, 31000], "by number, not by text");

    new.disks.retain(|disk| disk.disk_id != "disk-2001");
    new.disks[0].capacity_bytes = (5 << 30) + 1;
    new.disks[0].label = "Hard disk 9".to_owned();
    catalog.register_vm(&new, at(1)).await.expect("a VM");
    let disks = catalog.vm_disks(&vm.context_id).await.expect("disks");
    let keys: Vec<u32> = disks.iter().map(|disk| disk.device_key.get()).collect();
    assert_eq!(keys, [2000, 16000, 31000]);
    assert_eq!(
        (
            disks[2].capacity_bytes,
            disks[2].size_gb,
            disks[2].label.as_str()
        ),
        ((5 << 30) + 1, 6, "Hard disk 9")
    );
}

async fn a_renamed_vm_stays_itself(catalog: Catalog) {
    let first = NewVm {
        vmware_vm_id: "vm-7".to_owned(),
        ..new_vm("web", &[2000])
    };
    let (vm, _) = catalog.register_vm(&first, at(0)).await.expect("a VM");
    let renamed = NewVm {
        vm_name: "web-old".to_owned(),
        ..first.clone()
    };
    let (same, created) = catalog.register_vm(&renamed, at(1)).await.expect("a VM");
    assert_eq!(
        (same.context_id, same.vm_name.as_str(), created),
        (vm.context_id, "web-old", false)
    );
    let other = NewVm {
        vmware_vm_id: "vm-8".to_owned(),
        ..new_vm("db", &[2000])
    };
    catalog.register_vm(&other, at(2)).await.expect("a VM");
    let mixed = NewVm {
        vm_name: "db".to_owned(),
        ..first
    };
    assert_eq!(
        kind(catalog.register_vm(&mixed, at(3)).await),
        ErrorKind::Conflict
    );
}

async fn names_are_exact_and_may_be_ambiguous(catalog: Catalog) {
    let (vm, _) = catalog
        .register_vm(&new_vm("web", &[2000]), at(0))
        .await
        .expect("a VM");
    assert_eq!(catalog.vm_by_name_or_id("web").await.expect("a VM"), vm);
    assert_eq!(
        catalog
            .vm_by_name_or_id(vm.context_id.as_str())
            .await
            .expect("a VM"),
        vm
    );
    for unknown in ["", "we", "web ", "%", "/DC/vm/web"] {
        assert_eq!(
            kind(catalog.vm_by_name_or_id(unknown).await),
            ErrorKind::NotFound,
            "{unknown:?}"
        );
    }
    let elsewhere = NewVm {
        vcenter_host: "vc2".to_owned(),
        ..new_vm("web", &[2000])
    };
    catalog.register_vm(&elsewhere, at(0)).await.expect("a VM");
    let error = catalog
        .vm_by_name_or_id("web")
        .await
        .expect_err("ambiguous");
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.details.contains(vm.context_id.as_str()), "{error}");
    assert_eq!(
        catalog
            .vm_by_name_or_id(vm.context_id.as_str())
            .await
            .expect("a VM"),
        vm
    );
}

async fn clients_name_vms_by_path(catalog: Catalog) {
    let escaped = NewVm {
        vm_path: "/DC/vm/a%2fb %25".to_owned(),
        ..new_vm("a/b %", &[2000])
    };
    let (vm, _) = catalog.register_vm(&escaped, at(0)).await.expect("a VM");
    let moved = NewVm {
        vm_path: "/DC/vm/folder/web01".to_owned(),
        ..new_vm("web", &[2000])
    };
    catalog.register_vm(&moved, at(0)).await.expect("a VM");
    for (query, expected) in [
        ("a/b %", 1),
        ("a%2fb %25", 1),
        ("a%2Fb %25", 1),
        ("web", 1),
        ("web01", 1),
        ("folder", 0),
        ("", 0),
        ("b %", 0),
    ] {
        assert_eq!(
            catalog.vms_answering_to(query).await.expect("VMs").len(),
            expected,
            "{query:?}"
        );
    }
    assert_eq!(
        catalog.vms_answering_to("a%2fb %25").await.expect("VMs"),
        [vm]
    );
}

async fn bad_vms_are_refused(catalog: Catalog) {
    let good = new_vm("web", &[2000]);
    let disk = |disk_id: &str, capacity_bytes| NewVmDisk {
        disk_id: disk_id.to_owned(),
        capacity_bytes,
        label: String::new(),
    };
    let bad = [
        NewVm {
            vm_name: " ".to_owned(),
            ..good.clone()
        },
        NewVm {
            vm_name: "x".repeat(256),
            ..good.clone()
        },
        NewVm {
            vm_name: "a\nb".to_owned(),
            ..good.clone()
        },
        NewVm {
            credential_id: Some(4711),
            ..good.clone()
        },
        NewVm {
            disks: vec![disk("disk-x", 1)],
            ..good.clone()
        },
        NewVm {
            disks: vec![disk("disk-2000", 0)],
            ..good.clone()
        },
        NewVm {
            disks: vec![disk("disk-2000", u64::MAX)],
            ..good.clone()
        },
        NewVm {
            disks: vec![disk("disk-2000", 1), disk("disk-2000", 1)],
            ..good.clone()
        },
        NewVm {
            disks: (0..1000).map(|n| disk(&format!("disk-{n}"), 1)).collect(),
            ..good
        },
    ];
    for vm in bad {
        assert_eq!(
            kind(catalog.register_vm(&vm, at(0)).await),
            ErrorKind::Invalid,
            "{vm:?}"
        );
    }
    assert!(catalog.vms().await.expect("VMs").is_empty());
}

async fn credentials_keep_their_secret(catalog: Catalog) {
    let sealed = SealedCredential {
        credential_name: "lab".to_owned(),
        vcenter_host: "vc1".to_owned(),
        username: "backup".to_owned(),
        password_encrypted: "bm9uY2UrY2lwaGVydGV4dA==".to_owned(),
        datacenter: String::new(),
    };
    let made = catalog
        .add_credential(&sealed, at(0))
        .await
        .expect("a credential");
    let stored = catalog.credential(made.id).await.expect("a credential");
    assert_eq!(
        (&stored.credential, &stored.password_encrypted),
        (&made, &sealed.password_encrypted)
    );
    assert!(!format!("{sealed:?} {stored:?}").contains("bm9u"));
    assert_eq!(
        kind(catalog.add_credential(&sealed, at(0)).await),
        ErrorKind::Conflict
    );
    assert_eq!(
        kind(catalog.credential(made.id + 1).await),
        ErrorKind::NotFound
    );
    let empty = SealedCredential {
        credential_name: "x".to_owned(),
        password_encrypted: String::new(),
        ..sealed
    };
    assert_eq!(
        kind(catalog.add_credential(&empty, at(0)).await),
        ErrorKind::Invalid
    );
    let vm = NewVm {
        credential_id: Some(made.id),
        ..new_vm("web", &[2000])
    };
    assert_eq!(
        catalog
            .register_vm(&vm, at(0))
            .await
            .expect("a VM")
            .0
            .credential_id,
        Some(made.id)
    );
}

async fn repositories_are_made_once(catalog: Catalog) {
    let wanted = NewLocalRepository {
        id: repo("local"),
        name: "Local".to_owned(),
        path: "/srv/a \"b\" ü".to_owned(),
    };
    let made = catalog
        .ensure_repository(&wanted, at(0))
        .await
        .expect("a repository");
    assert_eq!(
        (
            made.path.as_str(),
            made.enabled,
            made.repository_type.as_str()
        ),
        ("/srv/a \"b\" ü", true, "local")
    );
    assert_eq!(
        catalog
            .ensure_repository(&wanted, at(9))
            .await
            .expect("the same"),
        made
    );
    assert_eq!(catalog.repository(&made.id).await.expect("the same"), made);
    assert_eq!(catalog.repositories().await.expect("a list"), [made]);
    let moved = NewLocalRepository {
        path: "/srv/b".to_owned(),
        ..wanted.clone()
    };
    let found = catalog
        .ensure_repository(&moved, at(9))
        .await
        .expect("the same, moved");
    assert_eq!(found.path, "/srv/b");
    assert_eq!(
        catalog.repository(&found.id).await.expect("the same"),
        found
    );
    let same_name = NewLocalRepository {
        id: repo("other"),
        ..wanted
    };
    assert_eq!(
        kind(catalog.ensure_repository(&same_name, at(0)).await),
        ErrorKind::Conflict
    );
    assert_eq!(
        kind(catalog.repository(&repo("nowhere")).await),
        ErrorKind::NotFound
    );
}
