BEGIN TRANSACTION;
CREATE TABLE config (
	"key" VARCHAR NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "config" VALUES('schema_version','1');
INSERT INTO "config" VALUES('default_mode','host');
CREATE TABLE sessions (
	session_id VARCHAR NOT NULL, 
	training_id VARCHAR NOT NULL, 
	attempt INTEGER NOT NULL, 
	trainer VARCHAR NOT NULL, 
	last_sequence INTEGER NOT NULL, 
	PRIMARY KEY (session_id), 
	FOREIGN KEY(training_id) REFERENCES trainings (training_id) ON DELETE CASCADE
);
INSERT INTO "sessions" VALUES('done-1','done',1,'gpu:9001',5);
INSERT INTO "sessions" VALUES('running-1','running',1,'gpu:9001',4);
INSERT INTO "sessions" VALUES('failed-1','failed',1,'gpu:9001',5);
CREATE TABLE training_events (
	training_id VARCHAR NOT NULL, 
	sequence INTEGER NOT NULL, 
	event TEXT NOT NULL, 
	PRIMARY KEY (training_id, sequence), 
	FOREIGN KEY(training_id) REFERENCES trainings (training_id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "training_events" VALUES('done',1,'{"sequence":1,"create_time":"2026-01-02T03:00:05.000678Z","attempt":0,"overall":0.0,"elapsed_s":0.0,"remaining_s":null,"kind":"state","detail":{"state":"QUEUED","message":"accepted","error_reason":"","checkpoint_path":"","model_path":""}}');
INSERT INTO "training_events" VALUES('done',2,'{"sequence":2,"create_time":"2026-01-02T03:12:05.000678Z","attempt":1,"overall":0.2,"elapsed_s":3.0,"remaining_s":3.0,"kind":"state","detail":{"state":"RUNNING","message":"started","error_reason":"","checkpoint_path":"","model_path":""}}');
INSERT INTO "training_events" VALUES('done',3,'{"sequence":3,"create_time":"2026-01-02T03:13:05.000678Z","attempt":1,"overall":0.3,"elapsed_s":4.5,"remaining_s":3.0,"kind":"epoch","detail":{"epoch":1,"total_epochs":3,"train_loss":1.5,"train_accuracy":0.5,"val_loss":1.25,"val_accuracy":0.4,"learning_rate":0.001,"rows_per_second":100000.0}}');
INSERT INTO "training_events" VALUES('done',4,'{"sequence":4,"create_time":"2026-01-02T03:14:05.000678Z","attempt":1,"overall":0.4,"elapsed_s":6.0,"remaining_s":3.0,"kind":"warning","detail":{"reason":"W","message":"slow disk"}}');
INSERT INTO "training_events" VALUES('done',5,'{"sequence":5,"create_time":"2026-01-02T03:30:05.000678Z","attempt":1,"overall":1.0,"elapsed_s":9.0,"remaining_s":0.0,"kind":"state","detail":{"state":"COMPLETED","message":"ended","error_reason":"","checkpoint_path":"","model_path":"m/v1"}}');
INSERT INTO "training_events" VALUES('failed',1,'{"sequence":1,"create_time":"2026-01-02T03:03:05.000678Z","attempt":0,"overall":0.0,"elapsed_s":0.0,"remaining_s":null,"kind":"state","detail":{"state":"QUEUED","message":"accepted","error_reason":"","checkpoint_path":"","model_path":""}}');
INSERT INTO "training_events" VALUES('failed',2,'{"sequence":2,"create_time":"2026-01-02T03:12:05.000678Z","attempt":1,"overall":0.2,"elapsed_s":3.0,"remaining_s":3.0,"kind":"state","detail":{"state":"RUNNING","message":"started","error_reason":"","checkpoint_path":"","model_path":""}}');
INSERT INTO "training_events" VALUES('failed',3,'{"sequence":3,"create_time":"2026-01-02T03:13:05.000678Z","attempt":1,"overall":0.3,"elapsed_s":4.5,"remaining_s":3.0,"kind":"epoch","detail":{"epoch":1,"total_epochs":3,"train_loss":1.5,"train_accuracy":0.5,"val_loss":1.25,"val_accuracy":0.4,"learning_rate":0.001,"rows_per_second":100000.0}}');
INSERT INTO "training_events" VALUES('failed',4,'{"sequence":4,"create_time":"2026-01-02T03:14:05.000678Z","attempt":1,"overall":0.4,"elapsed_s":6.0,"remaining_s":3.0,"kind":"warning","detail":{"reason":"W","message":"slow disk"}}');
INSERT INTO "training_events" VALUES('failed',5,'{"sequence":5,"create_time":"2026-01-02T03:30:05.000678Z","attempt":1,"overall":0.4,"elapsed_s":9.0,"remaining_s":0.0,"kind":"state","detail":{"state":"FAILED","message":"ended","error_reason":"LEAKAGE","checkpoint_path":"","model_path":""}}');
INSERT INTO "training_events" VALUES('queued',1,'{"sequence":1,"create_time":"2026-01-02T03:02:05.000678Z","attempt":0,"overall":0.0,"elapsed_s":0.0,"remaining_s":null,"kind":"state","detail":{"state":"QUEUED","message":"accepted","error_reason":"","checkpoint_path":"","model_path":""}}');
INSERT INTO "training_events" VALUES('running',1,'{"sequence":1,"create_time":"2026-01-02T03:01:05.000678Z","attempt":0,"overall":0.0,"elapsed_s":0.0,"remaining_s":null,"kind":"state","detail":{"state":"QUEUED","message":"accepted","error_reason":"","checkpoint_path":"","model_path":""}}');
INSERT INTO "training_events" VALUES('running',2,'{"sequence":2,"create_time":"2026-01-02T03:12:05.000678Z","attempt":1,"overall":0.2,"elapsed_s":3.0,"remaining_s":3.0,"kind":"state","detail":{"state":"RUNNING","message":"started","error_reason":"","checkpoint_path":"","model_path":""}}');
INSERT INTO "training_events" VALUES('running',3,'{"sequence":3,"create_time":"2026-01-02T03:13:05.000678Z","attempt":1,"overall":0.3,"elapsed_s":4.5,"remaining_s":3.0,"kind":"epoch","detail":{"epoch":1,"total_epochs":3,"train_loss":1.5,"train_accuracy":0.5,"val_loss":1.25,"val_accuracy":0.4,"learning_rate":0.001,"rows_per_second":100000.0}}');
INSERT INTO "training_events" VALUES('running',4,'{"sequence":4,"create_time":"2026-01-02T03:14:05.000678Z","attempt":1,"overall":0.4,"elapsed_s":6.0,"remaining_s":3.0,"kind":"warning","detail":{"reason":"W","message":"slow disk"}}');
CREATE TABLE trainings (
	position INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	training_id VARCHAR NOT NULL, 
	request_id VARCHAR, 
	content_digest VARCHAR NOT NULL, 
	strategy_name VARCHAR NOT NULL, 
	spec TEXT NOT NULL, 
	state VARCHAR NOT NULL, 
	create_time VARCHAR NOT NULL, 
	start_time VARCHAR, 
	end_time VARCHAR, 
	placement TEXT, 
	result TEXT, 
	cancel_save_checkpoint INTEGER, 
	summary TEXT NOT NULL, 
	UNIQUE (training_id), 
	UNIQUE (request_id)
);
INSERT INTO "trainings" VALUES(1,'done',NULL,'dddddddd','s0','{"batch_size":null,"data_mode":"local","enable_gpu":true,"end_date":null,"epochs":3,"execution_mode":null,"learning_rate":null,"memory_fraction":null,"mixed_precision":false,"model_type":null,"multi_symbol":null,"num_gpus":0,"require_gpu":false,"seed":42,"start_date":null,"strategy_yaml":"name: ''\u00fc''","symbols":["EURUSD","GBPUSD"],"timeframes":[],"validation_split":null}','COMPLETED','2026-01-02T03:00:05.000678Z','2026-01-02T03:10:05.000678Z','2026-01-02T03:30:05.000678Z','{"mode": "host", "trainer": "gpu:9001", "reasons": ["healthy", "has a GPU"]}','{"success": true, "model_path": "m/v1", "feature_importance": {"a": 0.25}}',1,'{"sequence":5,"state":"COMPLETED","attempt":1,"step":null,"epoch":{"epoch":1,"total_epochs":3,"train_loss":1.5,"train_accuracy":0.5,"val_loss":1.25,"val_accuracy":0.4,"learning_rate":0.001,"rows_per_second":100000.0},"batch":null,"overall":1.0,"elapsed_s":9.0,"remaining_s":0.0,"message":"ended","error_reason":"","checkpoint_path":"","model_path":"m/v1","warnings":["slow disk"]}');
INSERT INTO "trainings" VALUES(2,'running','r-running','dddddddd','s1','{"batch_size":null,"data_mode":"local","enable_gpu":true,"end_date":null,"epochs":3,"execution_mode":null,"learning_rate":null,"memory_fraction":null,"mixed_precision":false,"model_type":null,"multi_symbol":null,"num_gpus":0,"require_gpu":false,"seed":42,"start_date":null,"strategy_yaml":"name: ''\u00fc''","symbols":["EURUSD","GBPUSD"],"timeframes":[],"validation_split":null}','RUNNING','2026-01-02T03:01:05.000678Z','2026-01-02T03:11:05.000678Z',NULL,'{"mode": "host", "trainer": "gpu:9001", "reasons": ["healthy", "has a GPU"]}',NULL,NULL,'{"sequence":4,"state":"RUNNING","attempt":1,"step":null,"epoch":{"epoch":1,"total_epochs":3,"train_loss":1.5,"train_accuracy":0.5,"val_loss":1.25,"val_accuracy":0.4,"learning_rate":0.001,"rows_per_second":100000.0},"batch":null,"overall":0.4,"elapsed_s":6.0,"remaining_s":3.0,"message":"started","error_reason":"","checkpoint_path":"","model_path":"","warnings":["slow disk"]}');
INSERT INTO "trainings" VALUES(3,'queued',NULL,'dddddddd','s0','{"batch_size":null,"data_mode":"local","enable_gpu":true,"end_date":null,"epochs":3,"execution_mode":null,"learning_rate":null,"memory_fraction":null,"mixed_precision":false,"model_type":null,"multi_symbol":null,"num_gpus":0,"require_gpu":false,"seed":42,"start_date":null,"strategy_yaml":"name: ''\u00fc''","symbols":["EURUSD","GBPUSD"],"timeframes":[],"validation_split":null}','QUEUED','2026-01-02T03:02:05.000678Z',NULL,NULL,NULL,NULL,NULL,'{"sequence":1,"state":"QUEUED","attempt":0,"step":null,"epoch":null,"batch":null,"overall":0.0,"elapsed_s":0.0,"remaining_s":null,"message":"accepted","error_reason":"","checkpoint_path":"","model_path":"","warnings":[]}');
INSERT INTO "trainings" VALUES(4,'failed','r-failed','dddddddd','s1','{"batch_size":null,"data_mode":"local","enable_gpu":true,"end_date":null,"epochs":3,"execution_mode":null,"learning_rate":null,"memory_fraction":null,"mixed_precision":false,"model_type":null,"multi_symbol":null,"num_gpus":0,"require_gpu":false,"seed":42,"start_date":null,"strategy_yaml":"name: ''\u00fc''","symbols":["EURUSD","GBPUSD"],"timeframes":[],"validation_split":null}','FAILED','2026-01-02T03:03:05.000678Z','2026-01-02T03:13:05.000678Z','2026-01-02T03:30:05.000678Z','{"mode": "host", "trainer": "gpu:9001", "reasons": ["healthy", "has a GPU"]}',NULL,NULL,'{"sequence":5,"state":"FAILED","attempt":1,"step":null,"epoch":{"epoch":1,"total_epochs":3,"train_loss":1.5,"train_accuracy":0.5,"val_loss":1.25,"val_accuracy":0.4,"learning_rate":0.001,"rows_per_second":100000.0},"batch":null,"overall":0.4,"elapsed_s":9.0,"remaining_s":0.0,"message":"ended","error_reason":"LEAKAGE","checkpoint_path":"","model_path":"","warnings":["slow disk"]}');
CREATE INDEX trainings_by_state ON trainings (state);
CREATE INDEX trainings_by_strategy ON trainings (strategy_name, position);
CREATE INDEX ix_sessions_training_id ON sessions (training_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('trainings',4);
COMMIT;
